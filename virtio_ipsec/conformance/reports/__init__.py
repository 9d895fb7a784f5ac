"""What is made of a run: the JSON master and, from it, console lines, Markdown, JUnit XML and a page."""
