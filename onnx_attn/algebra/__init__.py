"""Exact identities that take work out of a site, each under the conditions under which it holds, and only there."""
