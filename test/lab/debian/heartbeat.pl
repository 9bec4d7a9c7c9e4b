#!/usr/bin/perl
# One line every 5 ms to the port that the lab watches: the lab's own clock tells from the gaps how long the guest stood.
use strict;
use warnings;
my ($path) = @ARGV;
open(my $port, '>', $path) or die "open $path: $!";
my $count = 0;
while (1) {
  syswrite($port, ++$count . "\n");
  select(undef, undef, undef, 0.005);
}
