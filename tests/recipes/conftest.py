"""Fixtures of these tests."""

from helpers.cluster import place, small_launcher, start  # noqa: F401 - fixtures of test_cluster.py
from helpers.recipe_fixtures import folder, settings  # noqa: F401
