"""One YAML file a make target; see each file for its settings."""
