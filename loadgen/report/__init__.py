"""Reports: what a campaign found, in tables, figures and one page, beside what was claimed before."""
