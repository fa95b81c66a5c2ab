"""What pages see of a running take: events, routes, pictures."""
