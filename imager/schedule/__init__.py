"""Backups that happen by themselves: a schedule is a job kept in a pair of systemd units."""
