"""What every process needs: settings, logs, a clock, supervised jobs. What knows runs does not belong here."""
