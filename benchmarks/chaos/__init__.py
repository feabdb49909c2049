"""The failure campaign: seeded faults against `uvd` on a Ray cluster of several nodes on this machine."""
