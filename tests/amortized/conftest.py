"""Families that several tests ask."""

import jax
import pytest
from amortized_models import TINY, designs, errors, regression, schools

import consistent_samplers as cs


@pytest.fixture(scope="session")
def linear():
    key, rows = jax.random.key(0), (4, 9)
    return cs.amortize(key, regression, designs, num_rows=rows, observed={"y": "y"}, **TINY)


@pytest.fixture(scope="session")
def members():
    key, rows = jax.random.PRNGKey(1), (3, 6)
    return cs.amortize(key, schools, errors, num_rows=rows, observed={"y": "y"}, **TINY)
