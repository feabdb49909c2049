"""The demo: real inputs out of small packages, through every source, to tokens, a trained model and predictions."""
