"""How long: the work of a whole step, term by term, and the time that it takes on a GPU. Pure."""
