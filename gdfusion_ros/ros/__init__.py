"""The ROS 2 node: topics in, topics out. Everything in between is elsewhere, and knows no ROS."""
