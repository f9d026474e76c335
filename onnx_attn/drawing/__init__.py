"""What a report shows beside figures: a site's nodes before and after, its masks as pictures, the model's outline. As plain dicts
beside the report's own, made only where somebody asked for them; `report/html` turns them into a page."""
