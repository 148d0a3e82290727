"""The part of report 06 about the note: its verdict can fail, and what cannot be judged says why."""

import json

import numpy as np
import pandas as pd
import pytest
from benches import simulated_run

from cxr_lib.explanation.facts import Changes, LeftOut, MeasuredNotes, has_known_facts, studies_of_run
from cxr_lib.explanation.noted import ENOUGH, notes_record, notes_sentences, notes_table
from cxr_lib.foundations.core import OBSERVATIONS

GIVEN = 'Spearman, given the image'


def measured(bear):
    "A table as `measure_notes` makes it, with this correlation among pairs that bear"
    of = ['all pairs', 'pairs that bear', 'stated facts that bear', 'denied facts that bear', *OBSERVATIONS]
    rows = {(m, o): (0.5, 0.4, 0.6) for m in (GIVEN, 'Spearman, note alone') for o in of}
    rows[GIVEN, 'pairs that bear'] = (bear, bear - 0.1, bear + 0.1)
    rows |= {('right direction', f'{o} facts that bear'): (0.9, 0.8, 1.0) for o in ('stated', 'denied')}
    rows |= {('irrelevant, within the tolerance', o): (0.9, 0.8, 1.0) for o in ('left out', 'sentence added')}
    names = ('whole', 'comprehensiveness', 'sufficiency', 'random_comprehensiveness', 'random_sufficiency')
    rows |= {('2 facts named', o): (0.3, 0.2, 0.4) for o in names}
    table = pd.DataFrame(rows, index=['value', 'low', 'high']).T.rename_axis(['measure', 'of'])
    changes = Changes([LeftOut(0, 'fever', None, 1)], np.zeros((1, 14)), np.zeros((1, 14)))
    return MeasuredNotes(table, changes, np.zeros((1, 14)))


@pytest.mark.parametrize(
    'bear, good', [(ENOUGH, True), (0.95, True), (ENOUGH - 0.01, False), (np.nan, False)]
)
def test_the_verdict_follows_the_figure(bear, good):
    first = notes_sentences(notes_record(measured(bear)))[0]
    assert ('not yet as it should' in first) is not good


def test_the_record_survives_json_and_what_is_undefined_is_null():
    record = notes_record(measured(np.nan), 'plain')
    again = json.loads(json.dumps(record, allow_nan=False))
    assert again == record and record['world'] == 'plain'
    assert 'undefined' in notes_sentences(again)[0]
    assert 'undefined' in notes_table(again).value.tolist()


def test_the_table_shows_every_measure_and_no_single_observation():
    table = notes_table(notes_record(measured(0.8)))
    assert set(table.measure) == set(measured(0.8).table.index.get_level_values('measure'))
    assert not set(table.of) & set(OBSERVATIONS)


def test_notes_that_nobody_knows_the_truth_of_say_so(tmp_path, monkeypatch):
    monkeypatch.setenv('CXR_HOME', str(tmp_path))
    assert has_known_facts(simulated_run(tmp_path))
    monkeypatch.setenv('CXR_HOME', str(tmp_path / 'other'))
    leaking = simulated_run(tmp_path / 'other', notes='label_leak')
    assert not has_known_facts(leaking)
    with pytest.raises(ValueError, match='label_leak notes of simulated'):
        studies_of_run(leaking, 5, 64)
    assert notes_sentences(dict(reason='nobody knows')) == [
        'Facts of the note were not judged: nobody knows.'
    ]


@pytest.mark.parametrize(
    'low, high, said', [(0.2, 0.4, 'reads past'), (0.4, 0.6, 'is open'), (0.6, 0.8, 'reads denials')]
)
def test_denials_are_judged_by_their_direction(low, high, said):
    found = measured(0.9)
    found.table.loc[('right direction', 'denied facts that bear')] = ((low + high) / 2, low, high)
    assert said in notes_sentences(notes_record(found))[1]
