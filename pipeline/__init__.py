"""Plan → run → commit on Ray, configs, the demo, and the command line."""
