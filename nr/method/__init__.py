"""The method: utilization, the penalty, rejuvenation, rescaling, merging."""
