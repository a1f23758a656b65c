"""Where hostile media are decoded: a process for each request, in a cage, with limits, and killed when nobody waits for it."""
