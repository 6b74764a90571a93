"""Reports of a build: HTML, Markdown, JSON, JUnit and the terminal, all from the same `BuildResult`."""
