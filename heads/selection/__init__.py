"""Selection of the classes that take part in a step."""
