"""What a hospital allows: its policy and the judgement of a job against it."""
