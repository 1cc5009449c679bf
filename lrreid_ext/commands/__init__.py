"""The tools, each as a module with a `main(argv) -> int`."""
