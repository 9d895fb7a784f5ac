"""The suite: clauses, cases, verdicts, runner, reports. Asks any device, knows none."""
