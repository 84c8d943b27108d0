"""The auditor at a site: `multimix-audit`, and what it needs of the site it audits."""
