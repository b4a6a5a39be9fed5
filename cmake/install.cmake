include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS forerun EXPORT forerunTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/cpp/include/forerun DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT forerunTargets NAMESPACE forerun:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/forerun COMPONENT cpp)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/forerunConfig.cmake.in
  ${PROJECT_BINARY_DIR}/forerunConfig.cmake INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/forerun)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/forerunConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/forerunConfig.cmake ${PROJECT_BINARY_DIR}/forerunConfigVersion.cmake
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/forerun COMPONENT cpp)
