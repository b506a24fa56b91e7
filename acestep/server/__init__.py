"""The HTTP service: ACE-Step's task API and chat completions, one line of work behind both."""
