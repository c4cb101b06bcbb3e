"""Vision-language-action policies: a vision-language backbone read once per observation, and an action expert."""
