"""From YAML to trusted, checked objects, and from errors to one line."""
