"""The warnings that a user sees, of all that were caught."""


def user_warnings(caught):
    """Return those warnings; Python may warn at any time of a resource that another test has left to it."""
    return [each for each in caught if each.category is UserWarning]
