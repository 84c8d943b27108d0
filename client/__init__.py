"""The hospital: one round at a site, the policy that bounds it, and the thin Flower ClientApp."""
