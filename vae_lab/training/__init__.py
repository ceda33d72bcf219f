"""From a config to a fitted model: build, fit, record."""
