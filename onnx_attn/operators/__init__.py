"""Attention operators without their extras: what the standard operator does beside attention, spelled out around it."""
