"""Evaluation of a visual transformer by prompts: one file a task, episodes, readers and scorers apart.

The tasks are those of the LVM paper (arXiv 2312.00785): perplexity of answers and of next frames, foreground
segmentation, detection, colorization, keypoints, puzzles. Protocols are in docs/evaluation.md.
"""
