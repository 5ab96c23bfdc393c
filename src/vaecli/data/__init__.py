"""From files to minibatches: where images come from, their splits, and how their pixels become x."""
