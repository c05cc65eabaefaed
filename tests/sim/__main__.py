"""`python -m tests.sim`: as many seeds as SEEDS says, from SIM_BASE on, on all cores; status 1 if one is broken."""

import os
import sys

from tests.sim.campaign import campaign, seeds_from_environment

if __name__ == "__main__":
    total = campaign(seeds_from_environment(), processes=len(os.sched_getaffinity(0)))
    print("\n".join([*total.broken[:5], total.report()]))
    missing = total.missing()
    if missing:
        print(f"never happened: {', '.join(missing)}")
    sys.exit(bool(total.broken or missing))
