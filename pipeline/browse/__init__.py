"""`uvd browse`: a small web app on this machine that shows what a dataset holds, and changes nothing."""
