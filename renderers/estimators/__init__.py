"""Annotations that a model estimates, for images that carry none. Each estimator is imported only where it is used."""
