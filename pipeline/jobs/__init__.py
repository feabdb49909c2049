"""Jobs on a Ray cluster: the same commands, sent with uvd's wheel by Ray's Jobs API; followed, stopped and resumed."""
