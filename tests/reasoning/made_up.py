"""Studies made up at random, for tests of the differential and its words."""

import numpy as np
from hypothesis import strategies as st

from cxr_lib.explanation.acceptance import why_no_zone
from cxr_lib.explanation.measured import MEASURE_WORDS, MEASURES
from cxr_lib.foundations.core import OBSERVATIONS
from cxr_lib.reasoning.certainty import FEWEST, SCALE, SCHEMA
from cxr_lib.reasoning.differential import Evidence, Measurement, StudyNumbers

#: What notes hold that a reader of the text must not take for a statement.
SENTENCES = (
    '61 yo M with fever, cough and known pneumonia.',
    'No pneumothorax on the outside film.',
    '? CHF',
    'PMH COPD, s/p fall.',
    'Chest tube in place; “large” effusion drained 300 ml.',
    'Findings: consolidation.',
    'H/o lung cancer. ',
)
EDGES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.9, 1.0)
REASONS = (
    '',
    '',
    '',
    'the phrase for it was checked on 3 statements, fewer than 10',
    'of statements with the phrase for it 62% were true, not 75% to 90%',
)

#: Two of the reasons why no zone is named.
WHY_NO_ZONE = (why_no_zone(None), why_no_zone(dict(bench=dict(in_distribution=False))))

probability = st.floats(0, 1) | st.sampled_from(EDGES)
#: A source of random numbers; hypothesis chooses its seed. Drawing each number by itself is far slower.
sources = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def probabilities(rng):
    "Fourteen probabilities, some on the edges of the bands"
    values = rng.random(len(OBSERVATIONS)) ** rng.choice([0.3, 1, 4])
    return np.where(rng.random(len(OBSERVATIONS)) < 0.15, rng.choice(EDGES, len(OBSERVATIONS)), values)


def log_odds(rng):
    return rng.normal(0, 2, len(OBSERVATIONS)) * (rng.random(len(OBSERVATIONS)) < 0.8)


def certainty(rng):
    "Phrases that are approved for some observations"
    learned = [o for o in OBSERVATIONS if rng.random() < 0.9]
    counted = dict(n=40, patients=40, probability=0.5, frequency=0.625, low=0.5, high=0.75)
    of = {
        o: {phrase.name: dict(test=dict(counted), not_used=str(rng.choice(REASONS))) for phrase in SCALE}
        for o in ('all', *OBSERVATIONS)
    }
    told = dict(schema=SCHEMA, judged='test', simulated=True, fewest=FEWEST, n_statements=40)
    return told | dict(learned=learned, observations=of)


def measured(rng):
    "A measurement for some of the observations that have one"
    found = {}
    for o in (o for o in MEASURES if rng.random() < 0.7):
        name, unit = MEASURE_WORDS[rng.choice(MEASURES[o])]
        own = Measurement(name=name, value=round(rng.random(), 2), unit=unit)
        found[o] = Evidence(source='measurement', logit=float(rng.normal(0, 2)), measurement=own)
    return found


@st.composite
def studies(draw, note=None):
    "Numbers of one study, in any combination"
    told = draw(st.lists(st.sampled_from(SENTENCES), max_size=3)) if note is None else note
    text, rng = ' '.join(told) or None, draw(sources)
    sentences = [(t.strip(), log_odds(rng)) for t in told] if draw(st.booleans()) else ()
    bill = {k: log_odds(rng) for k in ('base', 'image', 'note', 'interaction')}
    status = rng.choice(np.array(['in', 'out', 'abstain', None], object), len(OBSERVATIONS))
    return StudyNumbers(
        fused=probabilities(rng),
        image='made_up.png',
        note=text,
        without_note=probabilities(rng) if text else None,
        bill=bill if draw(st.booleans()) else {},
        conformal=status.tolist() if draw(st.booleans()) else (None,) * len(OBSERVATIONS),
        sentences=sentences,
        abstains=draw(st.sampled_from([(), (), (), ('The image is turned by 90 degrees.',)])),
        certainty=certainty(rng) if draw(st.integers(0, 5)) else None,
        fingerprint='0123456789abcdef',
        simulated=draw(st.booleans()),
        measured=measured(rng) if draw(st.booleans()) else {},
        no_zone=draw(st.sampled_from(('', *WHY_NO_ZONE))),
    )
