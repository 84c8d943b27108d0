"""`multimix-site check`: is this machine, its folder and its network fit for a federation?"""
