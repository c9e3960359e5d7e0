"""Who may call, how much, and over which transport: one check that both servers share."""
