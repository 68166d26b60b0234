# Passed as CMAKE_PROJECT_INCLUDE when building against PyPI's ROS wheels; not used against a ROS installation.
#
# rosidl_generator_py exports its library targets with the absolute include directories of Python and numpy:
# - those of the wheels name directories of the machine they were built on, which CMake refuses to use;
# - ours would name a virtual environment inside this source tree, which CMake refuses to export.
# Once a directory is configured, drop the former where they do not exist, and keep the latter to the build.
function(mend_include_directories)
  get_property(imported_targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS imported_targets)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(directories)
      set(existing "")
      foreach(directory IN LISTS directories)
        if(directory MATCHES "^\\$<" OR EXISTS "${directory}")
          list(APPEND existing "${directory}")
        endif()
      endforeach()
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
    endif()
  endforeach()

  set(generated_target ${PROJECT_NAME}__rosidl_generator_py)
  if(TARGET ${generated_target})
    get_target_property(directories ${generated_target} INTERFACE_INCLUDE_DIRECTORIES)
    list(TRANSFORM directories REPLACE "^(/.*)$" "$<BUILD_INTERFACE:\\1>")
    set_target_properties(${generated_target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${directories}")
  endif()
endfunction()

cmake_language(DEFER CALL mend_include_directories)
