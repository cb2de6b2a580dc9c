"""What a job did, for people: its event log, metrics.json, the HTML report and the live terminal view."""
