"""What the program says of plans and results, in lines for a person: the same in every interface."""
