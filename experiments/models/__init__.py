"""Models as they are built, judged and used."""
