"""One request becomes slots, each a call to a replica: spread, collect, merge, retry, cancel. No HTTP, no torch."""
