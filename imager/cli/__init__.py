"""The command line: one module per subcommand, with arguments, printing and exit codes only."""
