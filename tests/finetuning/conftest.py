"""Fixtures of these tests."""

from helpers.recipe_fixtures import folder, settings  # noqa: F401
