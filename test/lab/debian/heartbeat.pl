#!/usr/bin/perl
# A counter every 5 ms on the second serial port, as the tiny guest sends it: the lab stamps these with its own clock and
# tells from the gaps how long the guest stood.
use strict;
use warnings;
my ($path) = @ARGV;
open(my $port, '>', $path) or die "open $path: $!";
my $count = 0;
while (1) {
  syswrite($port, ++$count . "\n");
  select(undef, undef, undef, 0.005);
}
