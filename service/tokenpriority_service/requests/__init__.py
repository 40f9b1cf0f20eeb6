"""One request: from a body to checked sequences, evidence, priorities, an answer."""
