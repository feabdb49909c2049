"""The dataset card: one HTML file that shows a dataset to people, with everything in it and nothing fetched."""
