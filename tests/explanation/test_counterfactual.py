"""A patient drawn again without a finding differs only where the finding was, or where it shaped the anatomy."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from benches import untrained

from cxr_lib.data.simulated import patient_seed, simulated_radiograph
from cxr_lib.explanation.counterfactual import Case, ask_cases, ask_notes, case_pixels, change_age
from cxr_lib.explanation.counterfactual import draw_case, negate, plot_case
from cxr_lib.explanation.facts import draw_studies
from cxr_lib.simulation.causes import SIGNS
from cxr_lib.simulation.findings import DRAW

#: Signs that change nothing but their own shadow: pixels of 128 from the mask beyond which nothing may change.
#: The mask leaves out the faint outskirts of a shadow.
LOCAL = {'Lung Lesion': 4, 'Pleural Other': 4, 'Support Devices': 4, 'Consolidation': 16, 'Cardiomegaly': 9}
#: Signs with consequences or wide outskirts, that stay on their own side of the chest: a lung that shrinks, an
#: infiltrate that fades.
ONE_SIDED = ('Pneumonia', 'Pneumothorax')


@pytest.fixture(scope='module')
def studies():
    return draw_studies(4, seed=3)


def case_with(studies, i, **strengths):
    healthy = {f'strength/{s}': 0.0 for s in SIGNS}
    shown = {f'strength/{s.replace("_", " ")}': v for s, v in strengths.items()}
    return Case(studies.patients.iloc[i].to_dict() | healthy | shown, studies.plans[i])


def changed(case, other):
    return draw_case(case).image != draw_case(other).image


@pytest.mark.parametrize('projection', ['PA', 'AP'])
@pytest.mark.parametrize('sign', LOCAL)
def test_only_the_surroundings_of_a_local_finding_change(studies, sign, projection):
    for i in range(4):
        case = case_with(studies, i, **{sign: 2.8, 'Edema': 1.5}).projected(projection)
        mask = draw_case(case).masks[sign]
        distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
        where = changed(case, case.without_finding(sign))
        assert where.any() and distance[where].max() <= LOCAL[sign]


@pytest.mark.parametrize('sign', ONE_SIDED)
def test_the_consequences_of_a_one_sided_finding_stay_on_its_side(studies, sign):
    for i in range(4):
        case = case_with(studies, i, **{sign: 2.8})
        mask = draw_case(case).masks[sign]
        where = changed(case, case.without_finding(sign))
        left = np.arange(128)[None] < 64
        on_the_left = (mask & left).sum() > mask.sum() / 2
        other_side = np.arange(128)[None] > 64 + 14 if on_the_left else np.arange(128)[None] < 64 - 14
        assert where.any() and not (where & other_side).any()


@pytest.mark.parametrize('sign', SIGNS)
def test_no_finding_changes_the_edge_of_the_image_or_another_finding(studies, sign):
    other = 'Support Devices' if sign != 'Support Devices' else 'Lung Lesion'
    case = case_with(studies, 1, **{sign: 2.8, other: 2.5})
    drawn, gone = draw_case(case), draw_case(case.without_finding(sign))
    assert sign in drawn.masks and sign not in gone.masks
    assert (drawn.masks[other] != gone.masks[other]).mean() < 0.02
    assert (drawn.image != gone.image).mean() < 0.45
    assert (drawn.image[:, :4] == gone.image[:, :4]).all()


@pytest.mark.parametrize('sign', DRAW)
def test_a_finding_that_is_moved_to_where_it_is_gives_the_same_image(studies, sign):
    case = case_with(studies, 2, **{sign: 2.4, 'Fracture': 2.0, 'Atelectasis': 2.0})
    same = replace(case, moved={sign: patient_seed(case.patient['patient_id'])})
    ours, theirs = draw_case(same), simulated_radiograph(case.patient)
    assert (ours.image == theirs.image).all()
    assert all((ours.masks[k] == m).all() for k, m in theirs.masks.items())


@pytest.mark.parametrize('sign', DRAW)
def test_a_finding_elsewhere_leaves_the_other_findings_where_they_are(studies, sign):
    other = 'Lung Lesion' if sign != 'Lung Lesion' else 'Pleural Other'
    case = case_with(studies, 2, **{sign: 2.4, other: 2.0})
    before = draw_case(case)
    afters = [draw_case(case.elsewhere(sign, seed)) for seed in range(4)]
    assert any((before.masks[sign] != after.masks[sign]).any() for after in afters)
    assert all((before.masks[other] == after.masks[other]).all() for after in afters)


def test_a_larger_finding_holds_more_pixels_and_a_smaller_one_fewer(studies):
    case = case_with(studies, 0, Pleural_Effusion=1.5)
    pixels = [
        draw_case(c).masks['Pleural Effusion'].sum()
        for c in (case.with_strength('Pleural Effusion', 1.0), case, case.larger('Pleural Effusion'))
    ]
    assert pixels[0] < pixels[1] < pixels[2]


def test_answers_before_and_after_are_those_of_the_pairs(studies):
    classifier = untrained(studies.notes)
    case = case_with(studies, 0, Lung_Lesion=2.5)
    fact = next(f for f, says in case.plan.stated.items() if says)
    edits = [case.without_finding('Lung Lesion'), case.older(30), case.saying(fact, 0), case.without_note()]
    found = ask_cases(classifier, case, edits)
    for edit in edits:
        pixels = case_pixels(edit, 64)
        twin = ask_notes(classifier, pixels, edit.note, {'same': edit.note}).loc['same']
        assert np.allclose(found.loc[edit.name].after, twin.before, atol=1e-4)
        assert np.allclose(twin.change, 0, atol=1e-5)
    lesion = found.xs('Lung Lesion', level='observation')
    assert lesion.best_after['no Lung Lesion'] < 0.5 * lesion.best_before['no Lung Lesion']
    assert lesion.best_after['without a note'] == pytest.approx(lesion.best_before['without a note'])
    assert 'SIMULATED' in plot_case(found, case, edits[0]).get_supxlabel()


def test_age_changes_in_image_and_note(studies):
    plan = next(p for p in studies.plans if '{age' in p.who)
    case = replace(case_with(studies, 0), plan=plan)
    assert '33' in case.older(33).note and changed(case, case.older(33)).any()
    assert change_age(case.note, 33) == case.older(33).note


@pytest.mark.parametrize(
    'note, words, wanted',
    [
        ('c/o fever and cough', 'cough', 'c/o fever and no cough'),
        ('c/o fever, denies cough', 'cough', 'c/o fever, cough'),
        ('Neg for fever.', 'fever', 'fever.'),
        ('feverish, fever', 'fever', 'feverish, no fever'),
    ],
)
def test_negation_of_free_text(note, words, wanted):
    assert negate(note, words) == wanted


@pytest.mark.parametrize('words', ['rash', 'hemoptysis'])
def test_one_of_several_denials_is_left_to_a_person(words):
    with pytest.raises(ValueError, match='denied together'):
        negate('fever, denies rash or hemoptysis', words)
