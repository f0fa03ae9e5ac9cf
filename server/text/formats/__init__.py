"""Tool calls and reasoning as models write them: each family's syntax as data, one parser for all."""
