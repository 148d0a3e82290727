"""One toy model, and one running service for all tests of a file."""

import pytest
from toy_service import toy_predictor

from cxr_lib.service import running_service


@pytest.fixture(scope='session')
def predictor():
    return toy_predictor()


@pytest.fixture(scope='module')
def address(predictor):
    "Of a service without the page"
    with running_service(predictor, page=False) as found:
        yield found
